// The API key: for this tab only, and for this service only.
const NAME = "sleddog-api-key";

export const storedKey = () => sessionStorage.getItem(NAME);
export const storeKey = (key) => sessionStorage.setItem(NAME, key);
export const forgetKey = () => sessionStorage.removeItem(NAME);

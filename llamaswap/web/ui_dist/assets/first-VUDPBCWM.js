import{a}from"./chunk-C7LHCUGE.js";import"./chunk-V4CGN76E.js";import"./chunk-YLMEBUSH.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
